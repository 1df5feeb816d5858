"""The operators of deformable networks: public functions and modules."""

__all__: list[str] = []
