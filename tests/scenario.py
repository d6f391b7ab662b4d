"""A small governed registry to act upon: train, request, approve, promote, in a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import mlflow.sklearn
import numpy as np
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from governance.backend import Backend, PromotionRequest, open_backend
from governance.settings import GOVERNED_PREFIX, Settings
from governance.signing.dsse import sign_bundle
from governance.signing.keys import FileSigner, Signer, create_key
from governance.signing.roots import approver
from governance.signing.statements import PAYLOAD_TYPE
from governance.signing.trust import sign_roots, verify_chain

FEATURES = np.arange(40, dtype=float).reshape(20, 2)
LABELS = (FEATURES[:, 0] > 19).astype(int)


class Scenario:
    """Acts on the store at ``uri``; ``home`` is the server's state directory."""

    def __init__(self, uri: str, home: Path) -> None:
        self.uri = uri
        self.home = home
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        self.client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)

    @classmethod
    def again(cls, folder: Path) -> Scenario:
        """On the SQLite store in ``folder``, in this process."""
        uri = f"governed+sqlite:///{folder}/mlflow.db"
        return cls(uri, Settings.load(uri, {}).home)

    @classmethod
    def local(cls, folder: Path) -> Scenario:
        """On a fresh SQLite store in this process."""
        return cls.fresh(f"governed+sqlite:///{folder}/mlflow.db", folder)

    @classmethod
    def fresh(cls, uri: str, folder: Path) -> Scenario:
        """On a fresh store in this process, with its artifacts in ``folder``."""
        scenario = cls(uri, Settings.load(uri, {}).home)
        mlflow.create_experiment("scenario", artifact_location=(folder / "artifacts").as_uri())
        return scenario

    def close(self) -> None:
        """Stop following the ledger of a store in this process, and write what is counted."""
        from mlflow_plugins.governor import Governor
        from mlflow_plugins.refusals import refusals_of

        governor = Governor.of(self.uri)
        refusals_of(governor).flush()
        governor.ledger.close()

    @property
    def backend(self) -> Backend:
        return open_backend(self.uri)

    @property
    def signer(self) -> Signer:
        """The development approver's key, which the trust roots were founded on."""
        return FileSigner(self.home / "approver.key")

    def train(
        self,
        name: str = "fraud",
        *,
        accuracy: float = 0.97,
        tags: Any = None,
        labels: Any = LABELS,
    ) -> int:
        """An ordinary run that registers a model; the version's number."""
        mlflow.set_experiment("scenario")  # MLflow remembers the id of another test's store
        with mlflow.start_run():
            mlflow.log_param("C", 1.0)
            mlflow.log_metric("accuracy", accuracy)
            mlflow.set_tags({"provenance.seed": "7", **(tags or {})})
            model = LogisticRegression().fit(FEATURES, labels)
            info = mlflow.sklearn.log_model(
                model,
                name="model",
                registered_model_name=name,
                signature=infer_signature(FEATURES, LABELS),
                pip_requirements=["scikit-learn"],
            )
        return int(info.registered_model_version)

    def request(
        self, version: int, environment: str, name: str = "fraud", *, served_as: str | None = None
    ) -> PromotionRequest:
        return self.backend.request_promotion(name, version, environment, served_as=served_as)

    def approve(self, request: PromotionRequest, signer: Signer | None = None) -> PromotionRequest:
        bundle = sign_bundle(request.payload, PAYLOAD_TYPE, signer or self.signer)
        return self.backend.approve(request.statement_id, bundle)

    def clear(
        self, version: int, environment: str, name: str = "fraud", *, served_as: str | None = None
    ) -> PromotionRequest:
        """Request and approve."""
        return self.approve(self.request(version, environment, name, served_as=served_as))

    def promote(self, version: int, alias: str, environment: str, name: str = "fraud") -> None:
        """Request, approve and set the alias."""
        self.clear(version, environment, name)
        self.client.set_registered_model_alias(name, alias, str(version))

    def to_prod(self, version: int, name: str = "fraud") -> None:
        """Through staging into prod, as ``champion``."""
        self.promote(version, "challenger", "staging", name)
        self.promote(version, "champion", "prod", name)

    def add_person(self, person: str, *environments: str) -> Signer:
        """Let one more person approve; their signer."""
        signer = create_key(self.home / f"{person}.key")
        chain = self.backend.trust_roots()
        roots = verify_chain(chain, pinned_first=None).successor()
        payload = roots.add_person(
            person, person, [signer.public_key_pem], [approver(e, "*") for e in environments]
        ).to_payload()
        self.backend.change_trust_roots(payload, [sign_roots(payload, self.signer)])
        return signer

    def alias(self, alias: str, name: str = "fraud") -> int | None:
        """Where the alias points, None when it is not set."""
        aliases = self.client.get_registered_model(name).aliases
        return int(aliases[alias]) if alias in aliases else None

    def model_folder(self, version: int, name: str = "fraud") -> Path:
        """Where the version's files lie on this disk."""
        from governance import registry
        from governance.database import connect
        from governance.settings import plain_database_uri

        store = self.uri if self.uri.startswith(GOVERNED_PREFIX) else ""
        with connect(plain_database_uri(store)).connect() as connection:
            found = registry.candidate(connection, name, version)
            uri = registry.artifact_uri(connection, found.version_uid)
        assert uri is not None
        return Path(uri)

    def events(self, count: int = 1000) -> list[dict[str, Any]]:
        """The newest events in the tree, oldest first."""
        import json

        from mlflow_plugins.governor import Governor

        if self.uri.startswith(GOVERNED_PREFIX):
            Governor.of(self.uri).ledger.sequence()  # what nobody waits for is sequenced later
        return [json.loads(leaf) for _, leaf in self.backend.ledger_entries(-count, count)]
