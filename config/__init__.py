"""Templates of the function XML, the server configuration and the launchers.

Owns how a template becomes text; what goes into it is the installer's business. Values are escaped
for XML in every template: one that wants a value as it is says `| safe` where a reader sees it.
A name that a template uses and nobody gave is an error, never an empty string.
"""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(__name__),
        # Not select_autoescape(): it goes by the last extension, and does not know `*.xml.j2`.
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: object) -> str:
    """The text of `templates/<template>` with `values` filled in."""
    return _environment().get_template(template).render(**values)
