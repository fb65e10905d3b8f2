"What the project ships beside its modules: the scan for secrets, the distributions, and the files for those who carry on."

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from medlab.basics.secrets import SECRET_NAMES

ROOT = Path(__file__).parent.parent
SCAN = ROOT / "tools" / "scan_secrets.py"
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]

# Put together here, so that no file of the project holds anything that looks like a key.
BODY = "Zx9Qw8Er7Ty6Ui5Op4As3Df2Gh1Jk0Lmn"
SECRETS = {
    "Hugging Face": "hf_" + BODY,
    "Groq": "gsk_" + BODY,
    "Google": "AIza" + BODY,
    "(sk-)": "sk-proj-" + BODY,
    "bearer": "Bearer " + BODY.lower(),
}


def notebook(path, *cells):
    path.write_text(json.dumps({"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


def code(source, *outputs, **more):
    return {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "source": source.splitlines(True), "outputs": list(outputs), **more}


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text.splitlines(True)}


def scan(*words, **more):
    environment = {name: value for name, value in os.environ.items() if name not in SECRET_NAMES} | more
    return subprocess.run([sys.executable, "-I", str(SCAN), *map(str, words)], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("place", ["source", "outputs", "traceback", "html", "attachments", "metadata"])
def test_a_secret_is_found_wherever_it_stands_and_never_printed(tmp_path, kind, place):
    secret = SECRETS[kind]
    half = len(secret) // 2
    cell = {
        "source": code(f"key = '{secret}'"),
        "outputs": code("ask()", stream(f"fine\nGET /v1?key={secret} 403\n")),
        # a traceback colours parts of a line
        "traceback": code("ask()", {"output_type": "error", "ename": "E", "evalue": "", "traceback": ["E", f"\x1b[31m{secret[:half]}\x1b[39;49m{secret[half:]}\x1b[0m"]}),
        "html": code("show()", {"output_type": "display_data", "metadata": {}, "data": {"text/html": [f"<b>{secret}</b>"]}}),
        "attachments": code("1", attachments={"note.txt": {"text/plain": secret}}),
        "metadata": {**code("1"), "metadata": {"note": {"deep": [1, {"er": secret}]}}},
    }[place]
    path = notebook(tmp_path / "n.ipynb", code("1 + 1"), cell)
    done = scan(path)
    assert done.returncode == 1, done.stderr
    part = {"traceback": "outputs", "html": "outputs"}.get(place, place)
    assert f"n.ipynb, cell 1 ({part}): " in done.stderr and kind in done.stderr
    assert BODY[:12].lower() not in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize("name", SECRET_NAMES)
@pytest.mark.parametrize("form", ["{}={}", '{{"{}": "{}"}}', 'os.environ["{}"] = "{}"', 'monkeypatch.setenv("{}", "{}")', "%env {} {}"])
def test_the_value_of_a_key_is_found_by_its_name(tmp_path, name, form):
    value = "0123456789abcdef0123456789abcdef"  # no form of its own
    done = scan(notebook(tmp_path / "n.ipynb", code(form.format(name, value))))
    assert done.returncode == 1 and "cell 0 (source): value of a key" in done.stderr and value not in done.stderr
    assert scan(notebook(tmp_path / "n.ipynb", code(f"token = '{value}'"))).returncode == 0


def test_a_key_of_this_machine_is_found_whatever_it_looks_like(tmp_path):
    path = notebook(tmp_path / "n.ipynb", code("ask()", stream("no access with correct-horse-battery\n")))
    assert scan(path).returncode == 0
    done = scan(path, MEDLAB_API_KEY="correct-horse-battery")
    assert done.returncode == 1 and "cell 0 (outputs): the value that MEDLAB_API_KEY has here" in done.stderr
    assert "correct-horse" not in done.stderr


def test_keys_of_a_dotenv_file_are_read(tmp_path):
    (tmp_path / ".env").write_text("# mine\nexport NHS_API_KEY='tell-nobody-this'\nNCBI_API_KEY=\nOTHER=irrelevant-value\n")
    values = runpy.run_path(str(SCAN))["values_of"](SECRET_NAMES, tmp_path / ".env")
    assert values.get("NHS_API_KEY") == "tell-nobody-this" and "OTHER" not in values and values.get("NCBI_API_KEY") != ""


def test_what_only_resembles_a_key_is_left_alone(tmp_path):
    harmless = [
        'secret("HF_TOKEN", "HUGGINGFACE_TOKEN")', 'key = os.environ["GROQ_API_KEY"]', "HF_TOKEN=your-token-here", "task-specific-risk-of-heart-attack-in-men-over-40",
        "Authorization: Bearer TOKEN", "the bearer of this letter", "hf_transfer", "sha256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'",
    ]  # fmt: skip
    picture = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "AIza" + BODY * 4}}
    done = scan(notebook(tmp_path / "n.ipynb", *[code(line) for line in harmless], code("plot()", picture)))
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_read_is_no_clean_notebook(tmp_path):
    (tmp_path / "broken.ipynb").write_text("{")
    for path in (tmp_path / "broken.ipynb", tmp_path / "absent.ipynb", tmp_path):
        done = scan(path)
        assert done.returncode == 1 and "cannot be read" in done.stderr and "Traceback" not in done.stderr


def test_the_scan_knows_medlabs_keys_and_the_lessons_are_clean():
    assert runpy.run_path(str(SCAN))["key_names"](ROOT / "medlab") == list(SECRET_NAMES)
    done = scan()
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    "A source distribution, made of what is committed or about to be, and the wheel that is built from that."
    work = tmp_path_factory.mktemp("distributions")
    skip = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")
    shutil.copytree(ROOT, work / "tree", ignore=skip)
    script = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(work)], cwd=work / "tree", check=True, capture_output=True)
    source = next(work.glob("medlab-*.tar.gz"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(work), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(next(work.glob("medlab-*.whl"))) as archive:
        in_wheel = set(archive.namelist())
        metadata = archive.read(next(name for name in in_wheel if name.endswith(".dist-info/METADATA"))).decode()
    return in_source, in_wheel, metadata


def shipped_files():
    "What must be in a wheel, by its place in the repository and its place in the wheel."
    for path in sorted((ROOT / "medlab").rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.relative_to(ROOT).as_posix()
    for folder in ("data", "nbs"):
        for path in sorted((ROOT / folder).rglob("*")):
            hidden = any(part.startswith((".", "_")) for part in path.relative_to(ROOT).parts)
            if path.is_file() and not hidden and path.name != "lock.in":
                yield path.relative_to(ROOT).as_posix(), f"medlab/{path.relative_to(ROOT).as_posix()}"


def test_wheel_and_source_distribution_are_whole(distributions):
    in_source, in_wheel, _ = distributions
    assert "medlab/py.typed" in in_source and "medlab/py.typed" in in_wheel
    for place, in_package in shipped_files():
        assert place in in_source, f"the source distribution lacks {place}: see MANIFEST.in"
        assert in_package in in_wheel, f"the wheel lacks {place}: see setup.py"
    for name in ("settings.ini", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "tests/test_tools.py", "tools/test.sh", "data/lock.in"):
        assert name in in_source, name
    assert not [name for name in in_source | in_wheel if name.endswith((".pyc", ".env"))]


def test_licences_travel_with_the_wheel(distributions):
    _, in_wheel, metadata = distributions
    for name in ("LICENSE", "data/starter/LICENSE"):
        assert any(f"dist-info/licenses/{name}" in member for member in in_wheel), name
    assert "medlab/data/starter/LICENSE" in in_wheel
    assert re.search(r"^License(-Expression)?: Apache-2\.0 AND CC-BY-4\.0$", metadata, re.M)
    assert "Requires-Python: >=3.11" in metadata
    assert not re.search(r"^(Author-email|Home-page|Project-URL):", metadata, re.M)


def test_licence_files_are_the_licences_named():
    apache = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in apache and "END OF TERMS AND CONDITIONS" in apache and len(apache) > 11000
    assert "https://creativecommons.org/licenses/by/4.0/" in (ROOT / "data" / "starter" / "LICENSE").read_text()


def test_no_address_in_the_settings_leads_astray():
    for key in ("doc_host", "git_url", "author_email", "user"):
        assert SETTINGS[key] == "", f"settings.ini: {key} = {SETTINGS[key]}; leave it empty until the address is real (nbdev needs the key)"


def test_citation_and_changelog_name_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation) and citation["cff-version"] == "1.2.0"
    assert citation["version"] == SETTINGS["version"] and citation["license"] == "Apache-2.0"
    assert re.search(rf"^## {re.escape(SETTINGS['version'])}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)


def test_ci_runs_what_ci_run_runs_with_pinned_actions():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"] and os.access(ROOT / ".ci" / "run", os.X_OK)
    for step in steps:
        assert "run" in step or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step


def test_pre_commit_hooks_name_programs_that_are_there():
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"nbdev-clean", "nbdev-export", "ruff", "secrets"}
    for hook in hooks:
        for word in hook["entry"].split():
            if "/" in word:
                name = Path(word).name
                assert (ROOT / word).exists() or shutil.which(name, path=str(Path(sys.executable).parent)), word


def test_links_of_the_guides_lead_to_files():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/starter/README.md"):
        page = ROOT / name
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{name}: {target}"
