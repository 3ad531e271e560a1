"""The seed's training command: `python train.py --device_id=0 > train.log 2>&1 &`."""

from vitbase.cli.main import seed_main

seed_main("train")
