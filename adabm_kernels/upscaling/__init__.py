"""Pictures of any size through a network: cut into windows, computed, put together, brought to the size that was asked for."""
