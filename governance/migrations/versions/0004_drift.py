"""drift: what is watched, and alerts"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "chancery_drift_subjects",
        sa.Column("version_uid", sa.String(length=32), nullable=False),
        sa.Column("deployment", sa.String(length=128), nullable=False),
        sa.Column("model_uid", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("seen_window", sa.BigInteger(), nullable=False),
        sa.Column("seen_digest", sa.String(length=64), nullable=False),
        sa.Column("made_ms", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.Text(), nullable=True),
        sa.Column("bundle", sa.Text(), nullable=True),
        sa.Column("signed_by", sa.String(length=256), nullable=True),
        sa.Column("kept_number", sa.Integer(), nullable=False),
        sa.Column("kept_ms", sa.BigInteger(), nullable=False),
        sa.Column("kept_as", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("version_uid", "deployment"),
    )
    op.create_index(
        op.f("ix_chancery_drift_subjects_model_uid"), "chancery_drift_subjects", ["model_uid"]
    )
    op.create_table(
        "chancery_drift_alerts",
        sa.Column("alert_id", sa.String(length=32), nullable=False),
        sa.Column("version_uid", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("model_uid", sa.String(length=32), nullable=False),
        sa.Column("deployment", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=256), nullable=False),
        sa.Column("opened_ms", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("proposal", sa.LargeBinary(), nullable=True),
        sa.Column("signoff", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("alert_id"),
        sa.UniqueConstraint("version_uid", "number", name="chancery_drift_alerts_number"),
    )
    op.create_index(
        op.f("ix_chancery_drift_alerts_model_uid"), "chancery_drift_alerts", ["model_uid"]
    )
    op.create_index(
        "chancery_drift_alerts_live",
        "chancery_drift_alerts",
        ["version_uid", "deployment"],
        unique=True,
        sqlite_where=sa.text("state != 'closed'"),
        postgresql_where=sa.text("state != 'closed'"),
    )


def downgrade() -> None:
    op.drop_table("chancery_drift_alerts")
    op.drop_table("chancery_drift_subjects")
