"""Build settings only: the metadata is in pyproject.toml.

Patches and examples live at the top of the repository, where a reader looks for them, and are installed inside the
package.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["sparsepo_plugin", "sparsepo_plugin.*"]),
        "sparsepo_plugin._patches",
        "sparsepo_plugin._examples",
    ],
    package_dir={"sparsepo_plugin._patches": "patches", "sparsepo_plugin._examples": "examples"},
    package_data={
        "sparsepo_plugin": ["py.typed"],
        "sparsepo_plugin.analysis": ["page/*"],
        "sparsepo_plugin._patches": ["**/*"],
        "sparsepo_plugin._examples": ["openrlhf/**/*", "axolotl/**/*", "trl/**/*"],
    },
)
