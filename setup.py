"""Packaging for medlab: everything is read from settings.ini, the one place that names versions and requirements."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

extras = {
    name.removesuffix("_requirements"): value.split()
    for name, value in settings.items()
    if name.endswith("_requirements")
}
extras["all"] = sorted({requirement for group in extras.values() for requirement in group})

# What `medlab run` needs away from a clone: profiles, model specs, starter data, the lessons and the pins.
shipped = {
    "medlab.data": here / "data",
    "medlab.nbs": here / "nbs",
}
packages, package_dir, package_data = find_packages(include=["medlab", "medlab.*"]), {}, {}
for package, folder in shipped.items():
    for part in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
        if part.name.startswith((".", "_")):
            continue
        relative = part.relative_to(here).as_posix()
        name = ".".join([package, *part.relative_to(folder).parts])
        packages.append(name)
        package_dir[name] = relative
        package_data[name] = ["*.jsonl", "*.yaml", "*.json", "*.md", "*.txt", "*.html", "*.ipynb", "LICENSE"]
package_data["medlab"] = ["py.typed"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0 AND CC-BY-4.0",  # the code; the starter data
    license_files=["LICENSE", "data/starter/LICENSE"],
    author=settings["author"],
    keywords=settings["keywords"],
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    packages=packages,
    package_dir=package_dir,
    package_data=package_data,
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"],
        "inspect_ai": ["medlab=medlab.cli.inspect_tasks:inspect_tasks"],
    },
    zip_safe=False,
)
