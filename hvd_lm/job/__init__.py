"""This process within its job: launcher, threads, memory, levers of Horovod and MPI, topology; and how Horovod gets here."""
