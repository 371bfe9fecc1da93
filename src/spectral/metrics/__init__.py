"""The numbers' definitions: spectra, AVR and AM, the channels' alias power ratio, instability."""
