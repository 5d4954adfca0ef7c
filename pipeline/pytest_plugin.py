"""The pytest plugin, found by its entry point: the fixture `trueport_bundle`; `assert_faithful` is in testing.py.

It is loaded into every run of pytest where trueport is installed, so nothing is imported before a test asks for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trueport.runtime.bundle import Bundle

OPTION, INI = "--trueport-bundle", "trueport_bundle"
UNSET = (
    f"the fixture trueport_bundle needs a bundle, found none: give {OPTION} PATH, or write {INI} = PATH into pytest's "
    "configuration"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The path on the command line, or in pytest's configuration, there relative to its file."""
    told = "folder of the bundle that the fixture trueport_bundle opens"
    parser.getgroup("trueport").addoption(OPTION, metavar="PATH", help=told)
    parser.addini(INI, told, type="string", default="")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run where a test that is to be run wants a bundle and none is named: said once, not once a test."""
    config = session.config
    if config.option.collectonly or hasattr(config, "workerinput"):  # a listing, and xdist's workers: theirs says it
        return
    wanted = any("trueport_bundle" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and bundle_path(config) is None:
        raise pytest.UsageError(UNSET)


@pytest.fixture(scope="session")
def trueport_bundle(pytestconfig: pytest.Config) -> Bundle:
    """The bundle of --trueport-bundle, or of trueport_bundle in pytest's configuration; opened, all hashes verified."""
    path = bundle_path(pytestconfig)
    if path is None:
        pytest.fail(UNSET, pytrace=False)
    from trueport.runtime.bundle import Bundle
    from trueport.runtime.errors import TrueportError

    try:
        return Bundle.open(path)
    except TrueportError as error:
        told = str(error)
    pytest.fail(told, pytrace=False)


def bundle_path(config: pytest.Config) -> Path | None:
    """What was named, absolute; the command line wins."""
    if named := config.getoption(OPTION):
        return config.invocation_params.dir / str(named)
    if written := config.getini(INI):
        return (config.inipath.parent if config.inipath else config.rootpath) / str(written)
    return None
