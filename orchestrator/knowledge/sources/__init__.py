"""Files, folders and URLs become documents: what comes from outside is read in a confined child and believed nothing."""
