"""Maps the repository's top-level folders into the one package; see 'Packaging' in CONTRIBUTING.md."""

from setuptools import find_packages, setup

FOLDERS = {"offrl": "offrl", "offrl.envs": "envs", "offrl.policies": "policies"}

packages = list(FOLDERS)
for package, folder in FOLDERS.items():
    packages += [f"{package}.{name}" for name in find_packages(folder)]
setup(packages=packages, package_dir=FOLDERS)
