"""deployments"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "chancery_deployments",
        sa.Column("deploy_id", sa.String(length=32), nullable=False),
        sa.Column("route", sa.String(length=128), nullable=False),
        sa.Column("environment", sa.String(length=64), nullable=False),
        sa.Column("model_uid", sa.String(length=32), nullable=False),
        sa.Column("model_name", sa.String(length=256), nullable=False),
        sa.Column("node_pool", sa.String(length=128), nullable=True),
        sa.Column("resources", sa.Text(), nullable=False),
        sa.Column("provenance", sa.Text(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("metrics_endpoint", sa.Text(), nullable=True),
        sa.Column("created_by", sa.String(length=256), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("stable_version", sa.Integer(), nullable=False),
        sa.Column("stable_uid", sa.String(length=32), nullable=False),
        sa.Column("stable_digest", sa.String(length=64), nullable=False),
        sa.Column("canary_version", sa.Integer(), nullable=True),
        sa.Column("canary_uid", sa.String(length=32), nullable=True),
        sa.Column("canary_digest", sa.String(length=64), nullable=True),
        sa.Column("previous_version", sa.Integer(), nullable=True),
        sa.Column("previous_uid", sa.String(length=32), nullable=True),
        sa.Column("previous_digest", sa.String(length=64), nullable=True),
        sa.Column("rollout_id", sa.String(length=32), nullable=True),
        sa.Column("canary_config", sa.Text(), nullable=True),
        sa.Column("rollout_by", sa.String(length=256), nullable=True),
        sa.Column("rollout_ms", sa.BigInteger(), nullable=True),
        sa.Column("health", sa.String(length=16), nullable=False),
        sa.Column("closed", sa.Text(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=True),
        sa.Column("plan_revision", sa.BigInteger(), nullable=False),
        sa.Column("saved_ms", sa.BigInteger(), nullable=True),
        sa.Column("signals", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=256), nullable=True),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("ended_by", sa.String(length=256), nullable=True),
        sa.Column("ended_reason", sa.Text(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("stopped_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("deploy_id"),
    )
    op.create_index(
        "chancery_deployments_live_route",
        "chancery_deployments",
        ["route"],
        unique=True,
        sqlite_where=sa.text("ended_ms IS NULL"),
        postgresql_where=sa.text("ended_ms IS NULL"),
    )
    op.create_index(
        "chancery_deployments_live_port",
        "chancery_deployments",
        ["port"],
        unique=True,
        sqlite_where=sa.text("stopped_ms IS NULL"),
        postgresql_where=sa.text("stopped_ms IS NULL"),
    )
    op.create_table(
        "chancery_deployment_signals",
        sa.Column("deploy_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.String(length=256), nullable=False),
        sa.Column("asked_ms", sa.BigInteger(), nullable=False),
        sa.Column("rollout_id", sa.String(length=32), nullable=True),
        sa.Column("taken_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("deploy_id", "number"),
    )
    op.create_table(
        "chancery_rollout_decisions",
        sa.Column("rollout_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("deploy_id", sa.String(length=32), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("rollout_id", "number"),
    )
    op.create_index(
        op.f("ix_chancery_rollout_decisions_deploy_id"),
        "chancery_rollout_decisions",
        ["deploy_id"],
        unique=False,
    )


def downgrade() -> None:
    op.drop_index(
        op.f("ix_chancery_rollout_decisions_deploy_id"), table_name="chancery_rollout_decisions"
    )
    op.drop_table("chancery_rollout_decisions")
    op.drop_table("chancery_deployment_signals")
    op.drop_index("chancery_deployments_live_port", table_name="chancery_deployments")
    op.drop_index("chancery_deployments_live_route", table_name="chancery_deployments")
    op.drop_table("chancery_deployments")
