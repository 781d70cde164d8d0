import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from places import ROOT

FOLDERS = ("agents", "baselines", "conf", "envs", "experiments")
SHIPPED = (".py", ".yaml", ".csv", ".json", ".html", ".css", ".js", "py.typed")


def tracked() -> list[str]:
    """Files of the checkout that a commit would hold."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout: nothing to compare a build with")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def of_package(names: list[str]) -> set[str]:
    return {f"fleetgym/{name}" for name in names if name.split("/")[0] in FOLDERS}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist and the wheel made from it, of a copy: a build inside the checkout would leave its own files there."""
    copy = tmp_path_factory.mktemp("source")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", ".")
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "dist"


def test_the_wheel_holds_exactly_the_files_of_the_five_folders(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == of_package(tracked())


def test_the_sdist_holds_the_same_and_the_licence(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames() if sdist.getmember(name).isfile()}
    assert of_package(sorted(names)) == of_package(tracked())
    assert {"LICENSE", "README.md", "setup.py", "pyproject.toml"} <= names


def test_an_unpacked_wheel_finds_its_configs_and_data(dist: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.meta_path[:] = "
        "[f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]\n"
        "sys.path[:] = [p for p in sys.path if 'editable' not in p]\n"
        "import fleetgym.envs\n"
        "assert fleetgym.envs.__file__.startswith(sys.argv[1]), fleetgym.envs.__file__\n"
        "from fleetgym.experiments.harness.config import cluster_spec, compose_config\n"
        "print(cluster_spec(compose_config('simulate')).num_instances)"
    )
    command = (sys.executable, "-c", code, str(tmp_path / "site"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "8"), done.stderr


def test_every_file_of_the_folders_is_of_a_kind_that_is_shipped() -> None:
    assert [name for name in sorted(of_package(tracked())) if not name.endswith(SHIPPED)] == []


def test_every_package_says_that_it_is_typed() -> None:
    for folder in FOLDERS:
        assert (ROOT / folder / "py.typed").is_file()
        assert (ROOT / folder / "__init__.py").is_file()


def test_the_type_checker_sees_every_folder_under_the_import_name() -> None:
    for folder in FOLDERS:
        assert (ROOT / "typings" / "fleetgym" / folder).resolve() == ROOT / folder


def test_the_installed_set_is_the_tested_set() -> None:
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    installed = {}
    for name, version in pins:
        try:
            installed[name] = (metadata.version(name).partition("+")[0], version)
        except metadata.PackageNotFoundError:
            continue
    assert len(installed) > 100
    assert {name: pair for name, pair in installed.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize("required", [False, True])
def test_a_skip_for_lack_of_data_is_a_failure_where_data_is_required(required: bool, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_data.py").write_text("def test_data(data_path):\n    pass\n")
    (tmp_path / "test_module.py").write_text(
        "import pytest\npytest.skip('needs FLEETGYM_DATA', allow_module_level=True)\n"
    )
    (tmp_path / "test_other.py").write_text(
        "import pytest\n\n@pytest.mark.skip(reason='no screen')\ndef test():\n    pass\n"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("FLEETGYM_")}
    env["FLEETGYM_REQUIRE_DATA"] = "1" if required else "0"
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", ".")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if required else 0), done.stdout
    assert (
        "1 skipped, 2 " if required else "3 skipped"
    ) in done.stdout or "1 failed, 1 skipped, 1 error" in done.stdout
