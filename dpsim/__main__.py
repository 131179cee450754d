"""`python -m dpsim`, which is also what torchrun starts: `torchrun --nproc-per-node 2 -m dpsim train train.yaml`."""

from dpsim.cli import main

if __name__ == "__main__":
    main()
