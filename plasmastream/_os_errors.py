"""What to say about an error of the operating system: where descriptors have run out, the number and the remedy."""

import errno
import resource


def reason_of(error: OSError) -> str:
    """What the kernel said, and what can be done where this process has no descriptor left."""
    reason = error.strerror or str(error)
    if error.errno != errno.EMFILE:
        return reason
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{reason}: this process may have {limit:,} of them; close some, or raise the limit (ulimit -n)"
