"""Training: from labelled texts to a calibrated production checkpoint. `python -m train --help`."""
