/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells the service manager (systemd, with Type=notify) about the server's state, by the
 * protocol of sd_notify(3).  One datagram doesn't need a library.  Threads: any.  Layer:
 * server. */
#ifndef SERVER_SERVICE_MANAGER_H
#define SERVER_SERVICE_MANAGER_H

#define SERVICE_READY    "READY=1"
#define SERVICE_STOPPING "STOPPING=1"

/* Sends the state to the socket that $NOTIFY_SOCKET names.  Does nothing if that isn't set.  A
 * failure is logged, and the server continues. */
void service_manager_tell(const char *state);

#endif
