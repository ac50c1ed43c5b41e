"""The measurements of `adabm tune` and `adabm bench --tune`, and the kernels that they compile ahead of time."""
