"""The seed's own engine: the plain recipe on MindSpore itself. Only this room imports MindSpore."""
