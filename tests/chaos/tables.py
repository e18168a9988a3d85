"""The source tables, and what their indexes should hold: plain data, which workload, workers and oracle read.

Every index is built with two models, so that versions can be promoted and rolled back; each model has its own template.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA = "app"
MODELS = ("chaos_a", "chaos_b")
DIMENSION = 24
# A chunk holds at most four characters a token.
CHUNK_TOKENS = 64


@dataclass(frozen=True)
class Table:
    """One table, captured into the collection and index of the same name.

    Attributes:
        create: its DDL; `{schema}` stands for the schema.
        key: the key's columns.
        texts: columns whose change moves a text.
        number: an integer column that only the metadata show.
        templates: the text of a row under each model.
    """

    name: str
    create: str
    key: tuple[str, ...]
    texts: tuple[str, ...]
    number: str
    templates: dict[str, str]

    @property
    def qualified(self) -> str:
        """`schema.name`"""
        return f"{SCHEMA}.{self.name}"


TABLES = (
    Table(
        "notes",
        "CREATE TABLE app.notes (id int PRIMARY KEY, title text, body text, rank int, unused int)",
        ("id",),
        ("title", "body"),
        "rank",
        {"chaos_a": "{title}\n{body}", "chaos_b": "Note: {title}\n\n{body}"},
    ),
    # Wide rows whose body and padding lie out of line: an update of another column leaves them out of the log.
    Table(
        "articles",
        "CREATE TABLE app.articles (lang text, slug text, title text, body text, padding text, views int, "
        "unused int, PRIMARY KEY (lang, slug)) WITH (toast_tuple_target = 128); "
        "ALTER TABLE app.articles ALTER body SET STORAGE EXTERNAL, ALTER padding SET STORAGE EXTERNAL",
        ("lang", "slug"),
        ("body", "title"),
        "views",
        {"chaos_a": "{title}: {body}", "chaos_b": "{body}\n{title}"},
    ),
    Table(
        "logs",
        "CREATE TABLE app.logs (name text PRIMARY KEY, line text, level int, unused int); "
        "ALTER TABLE app.logs REPLICA IDENTITY FULL",
        ("name",),
        ("line",),
        "level",
        {"chaos_a": "{line}", "chaos_b": "log {line}"},
    ),
    Table(
        "parts",
        "CREATE TABLE app.parts (region int, id int, words text, stock int, unused int, PRIMARY KEY (region, id)) "
        "PARTITION BY LIST (region); "
        "CREATE TABLE app.parts_0 PARTITION OF app.parts FOR VALUES IN (0); "
        "CREATE TABLE app.parts_1 PARTITION OF app.parts FOR VALUES IN (1, 2); "
        "CREATE TABLE app.parts_rest PARTITION OF app.parts DEFAULT",
        ("region", "id"),
        ("words",),
        "stock",
        {"chaos_a": "{words}", "chaos_b": "part {words}"},
    ),
)
BY_NAME = {table.name: table for table in TABLES}
