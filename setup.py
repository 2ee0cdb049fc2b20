"""Build script: which files make up the package. All other metadata is in setup.cfg."""

from setuptools import find_packages, setup

setup(
    # The recipes lie at the top of the repository, and travel as lgd/recipes.
    packages=[*find_packages(include=["lgd", "lgd.*", "jobs", "jobs.*"]), "lgd.recipes"],
    package_dir={"lgd.recipes": "configs"},
    package_data={
        "lgd": ["py.typed"],
        "lgd.data": ["samples/*/*.md", "samples/*/LICENSE", "samples/*/*/*.json", "samples/*/*/*.jpg"],
        "lgd.recipes": ["**/*.yaml"],
    },
)
