"""Which key files are made on first use, and which are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from governance.errors import ConfigurationError
from governance.signing.keys import DevelopmentKeyWarning, create_key, development_signer


def test_the_default_key_is_made_on_first_use(tmp_path: Path) -> None:
    uri = f"file:{tmp_path / 'approver.key'}"
    with pytest.warns(DevelopmentKeyWarning, match="approver's key is a development key"):
        first = development_signer(uri, "approver's key", production=False)
    with pytest.warns(DevelopmentKeyWarning):
        again = development_signer(uri, "approver's key", production=False, create=False)
    assert again.keyid == first.keyid


def test_a_key_that_somebody_named_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "typo.key"
    with pytest.raises(ConfigurationError, match="No such file") as said:
        development_signer(f"file:{path}", "approver's key", production=False, create=False)
    assert "chancery keys create" in said.value.remedy
    assert not path.exists()


def test_production_takes_no_file(tmp_path: Path) -> None:
    create_key(tmp_path / "a.key")
    with pytest.raises(ConfigurationError, match="production mode refuses file keys"):
        development_signer(f"file:{tmp_path / 'a.key'}", "approver's key", production=True)
