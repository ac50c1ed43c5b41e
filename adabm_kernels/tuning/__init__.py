"""What `adabm tune` and `adabm bench --tiles` measure and build ahead of time on a machine."""
