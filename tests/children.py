"""Processes to be killed, forked from a server that has imported what a run needs."""

import multiprocessing
import os
import sys


def child(target, *args):
    """A started process that calls the function with one thread, in the same folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bnmlp.cli", "sklearn.datasets"])
    process = context.Process(target=_alone, args=(target, args))
    process.start()
    return process


def _alone(target, args):
    import torch

    torch.set_num_threads(1)
    target(*args)


def command(*words):
    """What the console script of the package does with these words, quietly."""
    from bnmlp.cli import main

    sys.argv = ["bnmlp", *map(str, words)]
    quiet = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(quiet, number)
    main()
