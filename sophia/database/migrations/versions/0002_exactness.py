"""Resumable snapshots, provenance of runs, continuous scans, erasures, and when a version stopped serving."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Run the SQL file of the same name, as one string: it holds no parameters."""
    op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text().replace("%", "%%"))
