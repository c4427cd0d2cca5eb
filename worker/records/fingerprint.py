"""Tell which dead letters died of the same: a short mark made of reason, error and place."""

import hashlib
import re
from pathlib import PurePath

#: What ends a word that may hold a digit: numbers, ids, times and addresses.
ENDS = r"\s(){}\[\]<>,;='\"`"
#: What differs from one death to the next. A quote opens behind what is no letter, or "can't" would open one; a quote
#: that never closes was cut off.
VARYING = re.compile(
    r"""(?<!\w)'(?:[^'\\]|\\.)*+(?:'|$)"""
    r"""|(?<!\w)"(?:[^"\\]|\\.)*+(?:"|$)"""
    r"""|`[^`]*+(?:`|$)"""
    rf"""|(?<![^{ENDS}])[^{ENDS}\d]*+\d[^{ENDS}]*+"""
    r"""|\b[0-9a-fA-F]{8,}\b"""
)
ERROR_TYPE = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")
FRAME = re.compile(r'^\s*File "(.+)", line \d+, in (\S+)', re.MULTILINE)
#: Parts of paths below which code is not ours: installed packages and Python itself.
FOREIGN = re.compile(r"[/\\](site-packages|dist-packages|lib[/\\]python\d[.\d]*)[/\\]|^<")


def of(reason: str, error: str, traceback: str) -> str:
    """Return 12 hexadecimal digits, the same for errors that differ only in numbers, ids, quoted values and addresses.

    They stand for the reason, the type and the first line of an error (``"ValueError: ..."``), and the innermost
    function of ours in its traceback, wherever in its file that is by now.
    """
    first = error.strip().partition("\n")[0]
    named = ERROR_TYPE.match(first)
    kind = named.group() if named else ""
    text = " ".join(VARYING.sub("#", first[len(kind) :]).split())
    mark = "\n".join((str(reason), kind, text, _place(traceback)))
    return hashlib.sha256(mark.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def _place(traceback: str) -> str:
    """Return the file's name and the function of the innermost frame of ours."""
    ours = [(path, function) for path, function in FRAME.findall(traceback) if not FOREIGN.search(path)]
    return f"{PurePath(ours[-1][0]).name} {ours[-1][1]}" if ours else ""
