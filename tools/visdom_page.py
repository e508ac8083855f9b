"""Gives an installed visdom the files of its page from npm, so that it starts without the network.

visdom fetches them from several web sites when it starts for the first time. This takes the same files of the same
versions with `npm pack`, and notes that they are there.
"""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

BOOTSTRAP_FONTS = "fonts/glyphicons-halflings-regular"
MATHJAX = (
    "MathJax.js",
    "config/Safe.js",
    "config/TeX-AMS-MML_HTMLorMML.js",
    "extensions/Safe.js",
    "jax/output/SVG/config.js",
    "jax/output/SVG/fonts/TeX/Size1/Regular/Main.js",
    "jax/output/SVG/fonts/TeX/fontdata.js",
    "jax/output/SVG/jax.js",
)
FILES: dict[str, dict[str, str]] = {
    "bootstrap@3.3.7": {
        "dist/css/bootstrap.min.css": "css/bootstrap.min.css",
        "dist/js/bootstrap.min.js": "js/bootstrap.min.js",
        **{f"dist/{BOOTSTRAP_FONTS}.{kind}": f"{BOOTSTRAP_FONTS}.{kind}" for kind in ("eot", "ttf", "woff", "woff2")},
        f"dist/{BOOTSTRAP_FONTS}.svg": f"{BOOTSTRAP_FONTS}.svg#glyphicons_halflingsregular",
    },
    "classnames@2.2.5": {"index.js": "fonts/classnames"},
    "d3@3.5.17": {"d3.min.js": "js/d3.v3.min.js"},
    "d3-selection-multi@1.0.1": {"build/d3-selection-multi.js": "js/d3-selection-multi.v1.js"},
    "jquery@3.1.1": {"dist/jquery.min.js": "js/jquery.min.js"},
    "layout-bin-packer@1.4.0": {
        "dist/layout-bin-packer.js": "js/layout_bin_packer.js",
        "dist/layout-bin-packer.js.map": "js/layout-bin-packer.js.map",
    },
    "mathjax@2.7.5": {name: f"js/mathjax/2.7.5/{name}" for name in MATHJAX},
    "plotly.js-dist-min@2.11.1": {"plotly.min.js": "js/plotly-plotly.min.js"},
    "react@16.2.0": {"umd/react.production.min.js": "js/react-react.min.js"},
    "react-dom@16.2.0": {"umd/react-dom.production.min.js": "js/react-dom.min.js"},
    "react-grid-layout@0.16.3": {"css/styles.css": "css/react-grid-layout-styles.css"},
    "react-modal@3.1.10": {"dist/react-modal.min.js": "js/react-modal.min.js"},
    "react-resizable@1.4.6": {"css/styles.css": "css/react-resizable-styles.css"},
    "save-svg-as-png@1.4.17": {"lib/saveSvgAsPng.js": "js/saveSvgAsPng.js"},
    "sjcl@1.0.7": {"sjcl.js": "js/sjcl.js"},
}
"""What visdom 0.2.4 asks for: files of npm packages, and where visdom looks for them in its folder `static`."""


def main() -> None:
    spec = importlib.util.find_spec("visdom")
    if spec is None or spec.origin is None:
        sys.exit("visdom is not installed: make visdom")
    if shutil.which("npm") is None:
        sys.exit("npm is not installed; with a network, visdom fetches the files itself when it starts")
    static = Path(spec.origin).parent / "static"
    with tempfile.TemporaryDirectory() as folder:
        for package, files in FILES.items():
            answer = subprocess.run(
                ["npm", "pack", "--silent", "--ignore-scripts", package],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
                timeout=300,
            )
            copy(Path(folder) / answer.stdout.split()[-1], files, static)
    (static / "version.built").write_text(importlib.metadata.version("visdom"))
    print(f"{sum(map(len, FILES.values()))} files are in {static}")


def copy(package: Path, files: dict[str, str], static: Path) -> None:
    with tarfile.open(package) as archive:
        for name, target in files.items():
            content = archive.extractfile(f"package/{name}")
            assert content is not None, f"{package.name} has no {name}"
            path = static / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())


if __name__ == "__main__":
    main()
