"""Say what an audit may find wrong, and what to do about each."""

import shlex
import time
from dataclasses import dataclass, field

from worker.records.keys import Keys

#: fault -> (what is wrong at a key, what to do), made whole in `judge`.
FAULTS = {
    "lost": ("is queued, and its message is in no list", "send the job again; then: redis-cli DEL {key}"),
    "twice": ("holds a message of job {job} more than once", "nothing: the later copy is dropped when fetched"),
    "surplus": ("holds a message of job {job}, whose record says otherwise", "nothing: it is dropped when fetched"),
    "misplaced": ("holds the message of job {job}, whose record names another list", "nothing: a fetch sets it right"),
    "not in": ("does not hold job {job}, whose record says it does", "redis-cli {add} {key} {score}{job}"),
    "abandoned": ("is held by an owner that no sweep will find", "redis-cli ZADD {owners} 0 {owner}"),
    "astray": ("holds job {job}, whose record says otherwise", "redis-cli {remove} {key} {job}"),
    "no record": ("holds job {job}, which has no record", "redis-cli {remove} {key} {job}"),
    "no state": ("is a record without a state", "redis-cli DEL {key}"),
    "no message": ("has lost its message", "send the job again; then: redis-cli DEL {key}"),
    "mortal": ("has a lifetime, and its job has not ended", "redis-cli PERSIST {key}"),
    "immortal": ("has ended, and stays for ever", "redis-cli EXPIRE {key} 86400"),
    "stays": ("stays for ever, and is not among the keys that may", "redis-cli EXPIRE {key} 86400"),
    "overdue": ("holds dead letter {job} for longer than retention.dead_s", "see ./forebay dead --help"),
    "counters": ("does not add up: {detail}", "see the other findings; then: redis-cli {mend}"),
}


@dataclass(frozen=True)
class Finding:
    """What is wrong: its kind (a key of `FAULTS`), at which Redis key, of which job if of one, and what to do."""

    fault: str
    key: str
    job: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Suspect:
    """What looked wrong. The stamp changes with every step of the job, so an equal suspect is the same fault still."""

    fault: str
    key: str
    job: str = ""
    stamp: str = ""
    queue: str = ""
    found_in: str = ""  # the set in which the job was found
    owner: str = ""
    detail: str = field(default="", compare=False)
    mend: str = field(default="", compare=False)


def judge(suspect: Suspect, keys: Keys) -> Finding:
    """Say what is wrong and what to do; commands are quoted for a shell."""
    what, remedy = FAULTS[suspect.fault]
    is_set = suspect.key.startswith(keys.held(""))
    words = {
        "key": suspect.key,
        "job": suspect.job,
        "owner": suspect.owner,
        "owners": keys.owners(),
        "add": "SADD" if is_set else "ZADD",
        "score": "" if is_set else f"{time.time():.0f} ",
        "remove": "SREM" if is_set else "ZREM",
    }
    told = {"detail": suspect.detail, "mend": suspect.mend}
    quoted = {name: word if name == "score" else shlex.quote(word) for name, word in words.items()}
    return Finding(
        suspect.fault, suspect.key, suspect.job, what.format(**words, **told), remedy.format(**quoted, **told)
    )
