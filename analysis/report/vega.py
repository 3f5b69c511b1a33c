"""The library that draws a page's figures: its release, and its script."""

from __future__ import annotations

from importlib.metadata import version

import vl_convert

from tunecast.models.files import default_cache, write_atomically


def plotting_release() -> str:
    """Return the name and release of the library that draws the page."""
    return f"Vega {vl_convert.get_vega_version()}"


def plotting_library() -> str:
    """Return the script of the library, which the page holds.

    It is taken from an installed package, which needs seconds for it, and kept in the cache.
    """
    kept = default_cache() / f"{plotting_release()}, vl-convert {version('vl-convert-python')}.js"
    if not kept.is_file():
        # The address is only the name under which vl-convert holds the module; nothing is fetched.
        name = f"https://cdn.jsdelivr.net/npm/vega@{vl_convert.get_vega_version()}/+esm"
        script = vl_convert.javascript_bundle(f"import * as all from '{name}'; window.vega = all;")
        script = script.replace("</script", "<\\/script")
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda path: path.write_text(script, encoding="utf-8"))
    return kept.read_text(encoding="utf-8")
