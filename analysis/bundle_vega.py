"""Writes the plotting library of the report's page, from the package that carries it.

python analysis/bundle_vega.py     (needs vl-convert-python, of the extra ``dev``)
"""

from __future__ import annotations

from pathlib import Path

from tunecast.analysis.report import VEGA
from tunecast.models.files import write_atomically

LIBRARY = Path(__file__).parent / "templates" / "vega.min.js"


def main() -> None:
    """Renew the library; its release stands in `tunecast.analysis.report`."""
    import vl_convert

    release = vl_convert.get_vega_version()
    assert VEGA == f"Vega {release}", f"analysis/report.py names another release than {release}"
    # The address is only the name under which vl-convert holds the module; nothing is fetched.
    module = f"https://cdn.jsdelivr.net/npm/vega@{release}/+esm"
    text = vl_convert.javascript_bundle(f"import * as held from '{module}'; window.vega = held;")
    assert "</script" not in text.lower(), "would end the script element that holds it"
    write_atomically(LIBRARY, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"{VEGA}, {len(text):,} characters")


if __name__ == "__main__":
    main()
