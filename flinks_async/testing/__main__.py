"""`python -m flinks_async.testing`: the simulated Flinks as a process of its own (see `ServerProcess`)."""

from .serve import main

if __name__ == "__main__":
    main()
