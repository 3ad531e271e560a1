"""The seed's own engine: the plain recipe on MindSpore itself. Only this room imports MindSpore."""

import os

# Before it is loaded: warnings of MindSpore's about itself would bury the log.
os.environ.setdefault("GLOG_v", "3")
