"""The frame in which a page from a sandbox is shown: its document and its headers.

Pure functions over the scripts in ``frame/``. The page runs in the inner of two frames, both of
an opaque origin. The outer one, ``shell.js``, is what JupyterLab embeds; its headers hold for the
inner one, too, and say where that may go: nowhere. docs/artifacts.md has the reasons.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).with_name("frame")
HEAD = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="x-dns-prefetch-control" content="off">'
)
"""The beginning of each document of the frame. No name of a link is looked up before it is clicked,
also by browsers that do not know ``CONNECTIONS``."""
STYLE = """
html, body { margin: 0; height: 100%; overflow: hidden }
iframe { display: block; border: 0; width: 100%; height: 100% }
"""
POLICY = (
    "sandbox allow-scripts allow-forms",
    "default-src 'none'",
    "script-src {hashes} 'unsafe-eval'",
    "style-src 'unsafe-inline'",
    "img-src data: blob:",
    "font-src data: blob:",
    "media-src data: blob:",
    "connect-src 'self'",
    "frame-src 'self'",
    "worker-src 'none'",
    "form-action 'none'",
    "base-uri 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types gvisor default",
)
"""The policy of the document. Nobody may connect to a server: ``CONNECTIONS`` forbids it, which the
document tries out, with what ``'self'`` allows here and ``shell.js`` takes back before a page is
there."""
CONNECTIONS = "()"
"""The Connection-Allowlist: no lookup of a name, no connection, by whatever element or script, also
for a document that the frame would go to. A policy of contents is judged after the lookup."""
PROBE = "<!doctype html><title>Reached</title><iframe></iframe>"
"""A document that ``probe.js`` must not reach: it would see the frame in it."""
FEATURES = (
    *("ambient-light-sensor", "aria-notify", "attribution-reporting", "autoplay", "bluetooth"),
    *("browsing-topics", "camera", "clipboard-read", "clipboard-write", "compute-pressure"),
    *("cross-origin-isolated", "deferred-fetch", "deferred-fetch-minimal", "display-capture"),
    *("encrypted-media", "fullscreen", "gamepad", "geolocation", "gyroscope", "hid"),
    *("identity-credentials-get", "idle-detection", "interest-cohort", "join-ad-interest-group"),
    *("keyboard-map", "language-model", "local-fonts", "local-network-access", "magnetometer"),
    *("media-playback-while-not-visible", "microphone", "midi", "otp-credentials", "payment"),
    *("picture-in-picture", "private-state-token-issuance", "private-state-token-redemption"),
    *("publickey-credentials-get", "run-ad-auction", "screen-wake-lock", "serial"),
    *("shared-storage", "speaker-selection", "storage-access", "sync-xhr", "unload", "usb"),
    *("web-share", "window-management", "xr-spatial-tracking"),
    *("accelerometer", "captured-surface-control", "digital-credentials-create"),
    *("digital-credentials-get", "focus-without-user-activation", "language-detector"),
    *("local-network", "loopback-network", "on-device-speech-recognition"),
    *("publickey-credentials-create", "summarizer", "translator"),
    *("ch-save-data", "ch-ua", "ch-ua-high-entropy-values", "ch-ua-mobile", "ch-ua-platform"),
)
"""Features of the browser that a page may not use, though some of them are allowed to frames of
other origins: a window above all others, gamepads, stores."""

ISOLATION = "isolate-and-credentialless"
"""The Document-Isolation-Policy. Chromium has all sandboxed frames of a server in one process: a
page that hangs there stops the others, and outlives its frame. With it, a frame has a process of
its own, which ends with the frame. Outputs of cells go without: Chromium 156 now and then crashes
the process of one of many such frames that come and go."""


@dataclass(frozen=True)
class FramePage:
    """The document of the outer frame."""

    html: str
    policy: str
    """Its Content-Security-Policy, without ``frame-ancestors``."""
    permissions: str
    """Its Permissions-Policy."""


@functools.cache
def make_frame_page() -> FramePage:
    """Return the page; the same for everybody, as nothing in it is a secret."""
    parts = (_read(name) for name in ("natives.js", "realm.js", "calls.js", "page.js"))
    prelude = (
        "(() => {\n'use strict';\ndocument.currentScript.remove();\n" + "".join(parts) + "})();"
    )
    probe = _read("probe.js")
    shell = _constant("INNER", prelude) + _constant("PROBE", probe) + _read("shell.js")
    hashes = " ".join(_hash(script) for script in (prelude, probe, shell))
    return FramePage(
        html=f"{HEAD}<title>Page</title><style>{STYLE}</style><body><script>{shell}</script>",
        policy="; ".join(POLICY).format(hashes=hashes),
        permissions=", ".join(f"{feature}=()" for feature in FEATURES),
    )


def _constant(name: str, script: str) -> str:
    """Return the definition of a document with one script, as a text."""
    text = f"{HEAD}<body><script>{script}</script>"
    # A text of JSON is one of JavaScript. "</script>" would end the script that it stands in.
    literal = json.dumps(text).replace("</", "<\\/")
    return f"const {name} = {literal};\n"


def _read(name: str) -> str:
    return (SCRIPTS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
