"""The processes of a run that torchrun started, on one or several computers: how they find each other, and wait."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["gather", "interface_towards", "start_processes", "stop_processes", "wait_for_all"]

CONNECTING = timedelta(minutes=10)  # torchrun has started all processes by then
# Of a collective operation; torch's default is 10 minutes on GPUs. A process may validate more or larger volumes than
# the others. Processes that end are noticed at once, since their connections do.
WORKING = timedelta(hours=3)
WAITING = timedelta(days=30)
SIOCGIFADDR = 0x8915  # Linux: the address of a network interface

_waiting_group: dist.ProcessGroup | None = None


def start_processes(device: torch.device) -> None:
    """
    Connect the processes of a run, with NCCL for GPUs and gloo for CPUs.

    gloo takes the address to which the name of the computer resolves, on many Linux systems one that other computers
    cannot reach, such as 127.0.1.1. For several computers, the interface on the way to ``MASTER_ADDR`` is therefore
    selected, unless ``GLOO_SOCKET_IFNAME`` is set.

    Args:
        device: the device of this process.

    Raises:
        RuntimeError: if the processes cannot reach each other.
    """
    global _waiting_group
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        interface = interface_towards(os.environ["MASTER_ADDR"])
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _explained():
        dist.init_process_group(backend, timeout=CONNECTING)
        if backend == "nccl":  # which connects when it is first used
            dist.new_group(backend="gloo", timeout=CONNECTING)
        # now, so that a process that ends while others wait for it ends a connection
        _waiting_group = dist.new_group(backend="gloo", timeout=WAITING)
    with contextlib.suppress(AttributeError):  # a part of torch that is not public
        dist.distributed_c10d._set_pg_timeout(WORKING)
    atexit.register(_disconnect)


def _disconnect() -> None:
    """
    End the threads of gloo before the interpreter ends.

    A run that fails does not reach :py:func:`stop_processes`. A thread of gloo that releases its last tensor while
    Python shuts down aborts the process (about once in a thousand runs), with ``terminate called without an active
    exception`` as the last thing on the screen. Groups of NCCL are left as they are: to end them may wait for others.
    """
    if dist.is_initialized():
        group = _waiting_group if dist.get_backend() == "nccl" else None  # None: all
        dist.destroy_process_group(group)


def stop_processes() -> None:
    """End what :py:func:`start_processes` began, if it did."""
    global _waiting_group
    _waiting_group = None
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """
    Wait until all processes of a run have called this; return at once if there is only one.

    Unlike ``torch.distributed.barrier``, this does not fail after the timeout of the process group (minutes), which the
    preprocessing of a large data set exceeds.

    Raises:
        RuntimeError: if one of them has ended.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    with _noticing_an_end():
        dist.barrier(_waiting_group or dist.new_group(backend="gloo", timeout=WAITING))


def gather(value: Any) -> list[Any]:
    """
    Wait like :py:func:`wait_for_all`, and return the value of each process, by rank.

    Args:
        value: what the other processes are to know, small and picklable.

    Raises:
        RuntimeError: if one of the processes has ended.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    with _noticing_an_end():
        dist.all_gather_object(values, value, _waiting_group or dist.new_group(backend="gloo", timeout=WAITING))
    return values


@contextlib.contextmanager
def _noticing_an_end() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError("another process of this run has ended; its messages say why.") from error


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what may help if the processes cannot be connected."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        here = os.environ.get("GLOO_SOCKET_IFNAME")
        raise RuntimeError(
            f"the {os.environ.get('WORLD_SIZE')} processes of this run cannot reach each other through "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: {str(error).splitlines()[0]} "
            "Firewalls must allow all ports between the computers; on each of them, GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME name the network interface to use, such as eth0 "
            f"(GLOO_SOCKET_IFNAME here: {here or 'not set'})."
        ) from error


def interface_towards(host: str) -> str | None:
    """
    Return the name of the network interface through which a computer is reached.

    Args:
        host: its name or IPv4 address. If it is this computer by a loopback address, the only other interface is
            returned.

    Returns:
        the name, or ``None`` if it cannot be found out, as on other systems than Linux.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # nothing is sent
            address = probe.getsockname()[0]
        addresses = _addresses()
    except OSError:
        return None
    if not address.startswith("127."):
        return next((name for name, found in addresses.items() if found == address), None)
    others = [name for name, found in addresses.items() if not found.startswith("127.")]
    return others[0] if len(others) == 1 else None


def _addresses() -> dict[str, str]:
    """Return the IPv4 address of each network interface that has one."""
    import fcntl

    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", os.fsencode(name)[:15])
                found[name] = socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
    return found
