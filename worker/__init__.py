"""The artifact worker: the process that runs artifact jobs against object stores."""
