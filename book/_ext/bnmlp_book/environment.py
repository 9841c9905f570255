"""Variables that chapters get otherwise than the build did: they run in their own folders."""

import os


def data_folder() -> dict[str, str]:
    """``BNMLP_DATA`` as an absolute path, which is the same folder in every chapter.

    Returns:
        The variable, for an environment; nothing where it is not set.
    """
    folder = os.environ.get("BNMLP_DATA")
    return {"BNMLP_DATA": os.path.abspath(os.path.expanduser(folder))} if folder else {}
