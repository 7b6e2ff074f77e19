"""`python -m flinks_async.testing`: the simulated Flinks as a process of its own (see `ServerProcess`)."""

from .process import main

if __name__ == "__main__":
    main()
