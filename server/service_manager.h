/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells the service manager (systemd, with Type=notify) what the server does: the protocol of
 * sd_notify(3), for which one datagram needs no library.
 * Threads: any.  Layer: server. */
#ifndef SERVER_SERVICE_MANAGER_H
#define SERVER_SERVICE_MANAGER_H

#define SERVICE_READY    "READY=1"
#define SERVICE_STOPPING "STOPPING=1"

/* Sends it to the socket that $NOTIFY_SOCKET names.  Without one nobody wants to know; one that
 * can't be reached is no reason not to serve. */
void service_manager_tell(const char *state);

#endif
