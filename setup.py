"""Map the flat source folders to the import package ``fleetgym``."""

from setuptools import find_namespace_packages, setup

FOLDERS = ("envs", "agents", "baselines", "conf", "experiments")
flat = find_namespace_packages(include=[p for f in FOLDERS for p in (f, f"{f}.*")])
setup(
    packages=[f"fleetgym.{name}" for name in flat],
    package_dir={f"fleetgym.{f}": f for f in FOLDERS},
)
