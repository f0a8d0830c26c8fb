"""The repository keeps its word: documents, Makefile, lock files, image and wheel agree with each other and with the code."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from coordinator.settings import CoordinatorSettings
from node.infra import settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cli", "coordinator", "node", "p2p", "consensus")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LOCKS = ("requirements-build.lock", "requirements.lock", "requirements-dev.lock")


def modules(*packages: str) -> list[Path]:
    return sorted(itertools.chain.from_iterable((ROOT / package).rglob("*.py") for package in packages))


def imported(module: Path) -> set[str]:
    """The dotted names that a file imports; relative imports are resolved."""
    names: set[str] = set()
    for statement in ast.walk(ast.parse(module.read_text())):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            folder = module.relative_to(ROOT).parent.parts
            above = folder[: len(folder) - statement.level + 1] if statement.level else ()
            base = ".".join([*above, *([statement.module] if statement.module else [])])
            names |= {f"{base}.{alias.name}" for alias in statement.names}
    return names


def pins(lock: str) -> dict[str, set[str]]:
    """Distribution -> pinned versions: more than one where they differ by Python version."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


# Code


def test_nothing_in_node_infra_imports_the_rest_of_node():
    for module in modules("node/infra"):
        above = {name for name in imported(module) if re.match(r"node\.(?!infra\b)", name)}
        assert not above, f"{module.relative_to(ROOT)} imports {sorted(above)}"


def test_every_module_says_what_it_is_for():
    written = [path for path in modules(*PACKAGES) if path.read_text().strip()]
    assert [str(path.relative_to(ROOT)) for path in written if not ast.get_docstring(ast.parse(path.read_text()))] == []


# Documents


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_between_documents_leads_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (document.parent / target.split("#")[0]).exists(), target


def test_every_make_target_in_the_documents_exists():
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    for document in DOCUMENTS:
        code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", document.read_text(), re.DOTALL))
        mentioned = set(re.findall(r"\bmake ([a-z]+)", code))
        assert mentioned <= targets, f"{document.name} names {sorted(mentioned - targets)}"


def test_make_help_lists_the_targets_that_the_documents_list():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    listed = set(re.findall(r"^  make (\w+)", shown, re.MULTILINE))
    table = set(re.findall(r"^\| `make (\w+)`", (ROOT / "docs/development.md").read_text(), re.MULTILINE))
    assert listed == table
    assert {"devnet", "test", "check", "bench", "soak"} <= listed


def test_the_ports_and_the_configurations_for_operators_are_those_of_the_code(tmp_path):
    text = (ROOT / "docs/operators.md").read_text()
    ports = dict(re.findall(r"^\| (\d+)/tcp \| `([a-z.]+)`", text, re.MULTILINE))
    node, coordinator = (
        {row.key: row.default for row in settings.option_rows(model)} for model in (settings.NodeSettings, CoordinatorSettings)
    )
    assert f"/tcp/{4001}" in node["mesh.listen"]
    own = {"4001": "mesh.listen", node["status.port"]: "status.port", coordinator["api.port"]: "api.port"}
    assert ports == own | {"6379": "redis.url"}
    assert f"HEALTH_URL=http://127.0.0.1:{node['status.port']}/livez" in (ROOT / "Dockerfile").read_text()
    examples = re.findall(r"```toml\n(.+?)```", text, re.DOTALL)
    *nodes, several = examples
    assert len(nodes) == 2
    tables = {name: keys for name, keys in tomllib.loads(several).items() if isinstance(keys, dict)}
    assert {f"{table}.{key}" for table, keys in tables.items() for key in keys} <= coordinator.keys()
    for index, example in enumerate(nodes):
        path = tmp_path / f"{index}.toml"
        path.write_text(example)
        settings.load(path, settings.NodeSettings)


def test_the_readme_shows_the_devnet_and_its_two_commands_before_anything_else():
    readme = (ROOT / "README.md").read_text()
    first_screen = readme[: readme.index("\n## ")]
    assert first_screen.index("<!-- devnet-view -->") < first_screen.index("<!-- /devnet-view -->")
    assert re.findall(r"^make (\w+)", first_screen, re.MULTILINE) == ["devnet", "test"]


def test_the_readme_has_a_row_for_every_folder():
    rows = set(re.findall(r"^\| `(\w+)/`", (ROOT / "README.md").read_text(), re.MULTILINE))
    ignored = {line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines()}
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and path.name not in ignored and not path.name.startswith(".") and not path.match("*.egg-info")
    }
    assert folders == rows


def test_the_page_for_developers_has_a_row_for_every_folder_of_tests():
    text = (ROOT / "docs/development.md").read_text()
    rows = set(re.findall(r"`tests/(\w+)/`", text))
    assert {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith("__")} <= rows


def test_the_python_versions_are_the_same_everywhere():
    project = PROJECT["project"]
    versions = [c.rsplit(" ", 1)[1] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert versions == ["3.11", "3.12", "3.13"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "scripts/find-python").read_text()
    assert all(version in (ROOT / "README.md").read_text() for version in versions)


def test_the_changelog_knows_the_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("Unreleased", PROJECT["project"]["version"])


# Lock files


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_distribution_is_pinned_by_hash_and_names_no_host(lock):
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).strip())
    assert len(entries) > 5
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_the_lock_files_hold_what_pyproject_asks_for():
    project = PROJECT["project"]
    runtime = [*project["dependencies"], *project["optional-dependencies"]["devnet"]]
    development = [*runtime, *project["optional-dependencies"]["dev"]]
    build = [*PROJECT["dependency-groups"]["build"], *PROJECT["build-system"]["requires"]]
    for lock, wanted in (
        ("requirements.lock", runtime),
        ("requirements-dev.lock", development),
        ("requirements-build.lock", build),
    ):
        locked = pins(lock)
        for requirement in map(Requirement, wanted):
            versions = locked.get(canonicalize_name(requirement.name), set())
            assert versions, f"{lock} lacks {requirement}: run `make lock`"
            assert all(requirement.specifier.contains(version) for version in versions), f"{lock}: {requirement}: run `make lock`"


def test_the_tests_run_what_is_shipped():
    shipped, tested = pins("requirements.lock"), pins("requirements-dev.lock")
    assert {name: tested.get(name) for name in shipped} == shipped


def test_the_npm_lock_is_pinned_by_hash_and_names_no_registry():
    lock = json.loads((ROOT / "tests/js/package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert {"node_modules/ethers", "node_modules/sdk-triggerx"} <= set(packages)
    for name, entry in packages.items():
        assert "resolved" not in entry, name
        assert entry["integrity"].startswith("sha512-"), name


# Image, CI and wheel


def test_the_image_copies_what_exists_and_is_not_ignored():
    ignored = {line.strip("/") for line in (ROOT / ".dockerignore").read_text().split()}
    copied = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source for line in copied for source in line.split()[:-1] if not source.startswith("--")]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.strip("/").split("/")[0] not in ignored, source


def test_ci_runs_the_readme_s_test_command_and_can_be_started():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.index("\nmake check\n") < text.index("\nmake test ")
    assert subprocess.run(["bash", "-n", script], check=False, timeout=60).returncode == 0


def test_the_wheel_holds_the_packages_and_the_contracts_and_nothing_else(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("triggerx_node-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    artifacts = sorted((ROOT / "consensus/contracts/artifacts").glob("*.json"))
    sources = sorted((ROOT / "consensus/contracts").rglob("*.vy"))
    assert artifacts
    assert sources
    wanted = {str(path.relative_to(ROOT)) for path in [*artifacts, *sources, *modules(*PACKAGES)]}
    assert wanted <= inside
    assert {name.split("/")[0] for name in inside if ".dist-info/" not in name} == set(PACKAGES)
