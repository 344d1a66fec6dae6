#!/usr/bin/env python3
"""Lists hosts, runs a command on them, watches it live, and cancels another.

    fleet.py ADDRESS CA --certificate CERT KEY    with mutual TLS
    fleet.py ADDRESS CA --token-file FILE         with a bearer token
"""

import argparse
import pathlib
import sys
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from muster.v1 import actions_pb2, hosts_pb2, hosts_pb2_grpc, jobs_pb2, jobs_pb2_grpc


def connect(arguments):
    """A channel that checks the control plane's certificate and shows ours, or our token."""
    ca = pathlib.Path(arguments.ca).read_bytes()
    if arguments.certificate:
        certificate, key = (pathlib.Path(path).read_bytes() for path in arguments.certificate)
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    else:
        token = pathlib.Path(arguments.token_file).read_text().strip()
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(ca), grpc.access_token_call_credentials(token)
        )
    return grpc.secure_channel(arguments.address, credentials)


def reason(error):
    """The machine-readable reason of a failed call, as "HOST_NOT_FOUND". Decide by this, never by the text."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == "muster":
            return info.reason
    return error.code().name


def create(jobs, selector, argv):
    """Creates a job. Asking again with the same request id never starts it twice, so a lost answer is no loss."""
    request = jobs_pb2.CreateJobRequest(
        request_id=str(uuid.uuid4()),
        selector=selector,
        action=actions_pb2.Action(command=actions_pb2.Command(argv=argv)),
    )
    for _ in range(5):
        try:
            return jobs.CreateJob(request, timeout=30, wait_for_ready=True).job
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
    raise SystemExit("the control plane does not answer")


def watch(jobs, job_id):
    """Yields what happens to a job until it is over; goes on where it was when the connection breaks."""
    token = ""
    while True:
        try:
            request = jobs_pb2.WatchJobRequest(job_id=job_id, resume_token=token)
            for answer in jobs.WatchJob(request, wait_for_ready=True):
                yield from answer.update.events
                token = answer.update.resume_token
            return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the control plane, as 127.0.0.1:8766")
    parser.add_argument("ca", help="file with the authority's certificate")
    parser.add_argument("--certificate", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--token-file")
    parser.add_argument("--selector", default="all")
    arguments = parser.parse_args()

    with connect(arguments) as channel:
        hosts = hosts_pb2_grpc.HostServiceStub(channel)
        jobs = jobs_pb2_grpc.JobServiceStub(channel)

        # List.
        for host in hosts.ListHosts(hosts_pb2.ListHostsRequest(selector=arguments.selector)).hosts:
            presence = hosts_pb2.Host.Presence.Name(host.presence).removeprefix("PRESENCE_").lower()
            print(f"{host.name}  {presence}  {host.facts.distro} {host.facts.distro_version}")

        # Run, and watch it live.
        job = create(jobs, arguments.selector, ["sh", "-c", "echo hello from $(hostname); exit 3"])
        for event in watch(jobs, job.job_id):
            if event.HasField("output"):
                sys.stdout.write(event.output.data.decode(errors="replace"))
            elif event.HasField("task"):
                state = jobs_pb2.Task.State.Name(event.task.state).removeprefix("STATE_").lower()
                code = f", exit code {event.task.exit_code}" if event.task.HasField("exit_code") else ""
                print(f"{event.task.host_name}: {state}{code}")

        # Cancel: the whole process tree ends, and the hosts confirm it.
        job = create(jobs, arguments.selector, ["sleep", "600"])
        asked = False
        for event in watch(jobs, job.job_id):
            if event.HasField("task") and event.task.state == jobs_pb2.Task.STATE_RUNNING and not asked:
                jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job.job_id))
                asked = True
        job = jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job.job_id)).job
        print(f"{job.job_id} is {jobs_pb2.Job.State.Name(job.state).removeprefix('STATE_').lower()}")

        # A mistake has a reason.
        try:
            create(jobs, "no-such-host", ["true"])
        except grpc.RpcError as error:
            print(f"{reason(error)}: {error.details()}")


if __name__ == "__main__":
    main()
