"""How data sets are stored: folders, tables, IDX and CIFAR files, Hugging Face."""
