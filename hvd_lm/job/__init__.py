"""This process within its job: launcher, levers of Horovod and MPI, memory, topology; and how Horovod gets here."""
