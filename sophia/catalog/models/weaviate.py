"""What an index may say about its Weaviate class. Other stores do not read it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sophia.catalog.models.base import Column, Frozen

PropertyType = Literal["text", "int", "number", "boolean", "date", "text[]", "int[]", "number[]"]


class Hnsw(Frozen):
    """The nearest-neighbour graph of a class. Any change is a new index version."""

    ef_construction: int = Field(default=128, ge=8, le=4096, description="Candidates looked at when a vector is added.")
    max_connections: int = Field(default=32, ge=4, le=2047, description="Links of a vector in each layer.")
    ef_min: int = Field(default=200, ge=1, description="Fewest candidates of a search.")
    ef_max: int = Field(default=800, ge=1, description="Most candidates of a search.")
    ef_factor: int = Field(default=8, ge=1, description="Candidates of a search for each result that is asked for.")
    quantizer: Literal["none", "rq"] = Field(
        default="none",
        description="What the graph holds in memory: whole vectors, or 8 bits a dimension (rotational quantisation).",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Hnsw:
        if self.ef_min > self.ef_max:
            raise ValueError("ef_min must not be greater than ef_max")
        return self


class WeaviateProperty(Frozen):
    """How a metadata column is shown in the class, for its other readers."""

    type: PropertyType = Field(default="text", description="Data type of the property.")
    name: Column | None = Field(default=None, description="Name of the property; the column's if null.")


class Generative(Frozen):
    """A generative module of the class, such as generative-openai."""

    module: str = Field(pattern=r"^generative-[a-z0-9-]+$", description="Name of the module.")
    settings: dict[str, str | int | float | bool] = Field(
        default={}, description="Its class settings, such as model; never a key."
    )


class WeaviateOptions(Frozen):
    """The options of an index's class."""

    hnsw: Hnsw = Field(default=Hnsw(), description="Its nearest-neighbour graph.")
    tenancy: bool = Field(
        default=False,
        description="One tenant (a shard of its own) for each value of required_filter, made when it is first written.",
    )
    properties: dict[Column, WeaviateProperty] = Field(
        default={}, description="Type and name of metadata columns; a column that is not named is text."
    )
    generative: Generative | None = Field(default=None, description="Generative module; null: none.")

    def property_of(self, column: str) -> WeaviateProperty:
        """What was said of a metadata column, or the default."""
        return self.properties.get(column, WeaviateProperty())

    def property_name(self, column: str) -> str:
        """The property's name: Weaviate begins all of them with a small letter. A name in capitals becomes small."""
        name = self.property_of(column).name or (column.lower() if column.isupper() else column)
        return name[0].lower() + name[1:]
