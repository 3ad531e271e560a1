"""The seed's evaluation command: `python eval.py --checkpoint_path ./ckpt_0`."""

from vitbase.cli.main import seed_main

seed_main("eval")
