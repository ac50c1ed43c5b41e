"""The stages of a calibration; `adabm_kernels.calibrate` runs them in order."""
