"""`python -m flow_opd` is `flow-opd`."""

from flow_opd.cli import main

if __name__ == "__main__":
    main()
