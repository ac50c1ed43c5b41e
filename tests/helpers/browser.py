"""Opens report pages in a browser."""

from __future__ import annotations

import os
import shutil
import subprocess

from needs import needs

CHROMIUM = shutil.which("chromium")
needs_browser = needs("chromium")


def chromium(folder, page, script, *options):
    """Opens the page, `page.html` in the folder, with a script that runs before the page's own ones, and returns the completed
    process."""
    head = "<script>const errors = []; addEventListener('error', e => errors.push(e.message));</script>"
    tail = f"<script>addEventListener('load', () => {{ {script} }});</script></body>"
    (folder / "page.html").write_text(page.replace("<head>", f"<head>{head}").replace("</body>", tail), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command += [
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1000,1400",
        "--force-device-scale-factor=1",
    ]
    environment = {**os.environ, "HOME": str(folder)}
    command += [*options, (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
