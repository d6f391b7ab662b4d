"""experiments and shadows"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COLUMNS = (
    ("experiment_id", sa.String(length=32)),
    ("experiment", sa.Text()),
    ("shadow_id", sa.String(length=32)),
    ("shadow", sa.Text()),
)


def upgrade() -> None:
    for name, kind in _COLUMNS:
        op.add_column("chancery_deployments", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    for name, _ in reversed(_COLUMNS):
        op.drop_column("chancery_deployments", name)
