/* netdelay - a network switch that holds every frame for a while, for kernels that cannot (no sch_netem).
 *
 *   netdelay MICROSECONDS INTERFACE...
 *
 * Needs root. The interfaces must be up and in no bridge. Frames go where the address they are sent to was last
 * seen, or to all. Runs until it is killed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Frames are passed on as they come, several packets in one, with the header that says so. */
enum { HEADER = sizeof(struct virtio_net_hdr), MAX_FRAME = 70000, MAX_PORTS = 16, MAX_HELD = 65536, MAX_KNOWN = 64 };

struct frame {
    int64_t due; /* nanoseconds */
    int from;
    size_t bytes;
    unsigned char *data; /* header, then the frame */
};

struct delay_switch {
    int64_t delay;
    int ports;
    struct pollfd sockets[MAX_PORTS];
    struct frame held[MAX_HELD]; /* a ring: [sent, received) modulo its size */
    size_t sent, received;
    struct {
        unsigned char address[ETH_ALEN];
        int port;
    } known[MAX_KNOWN];
    int known_count;
};

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "netdelay: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_port(const char *interface)
{
    const int on = 1, buffer_bytes = 16 << 20; /* what waits for bandwidth behind a port must find room */
    struct sockaddr_ll address = {.sll_family = AF_PACKET,
                                  .sll_protocol = htons(ETH_P_ALL),
                                  .sll_ifindex = (int)if_nametoindex(interface)};
    struct packet_mreq all = {.mr_ifindex = address.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
    int port = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(ETH_P_ALL));
    if (port < 0 || setsockopt(port, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) != 0 ||
        setsockopt(port, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) != 0 ||
        setsockopt(port, SOL_SOCKET, SO_RCVBUFFORCE, &buffer_bytes, sizeof buffer_bytes) != 0 ||
        setsockopt(port, SOL_SOCKET, SO_SNDBUFFORCE, &buffer_bytes, sizeof buffer_bytes) != 0 ||
        setsockopt(port, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all) != 0 ||
        bind(port, (struct sockaddr *)&address, sizeof address) != 0)
        fail(interface);
    return port;
}

/* The port behind which an address is, or -1. */
static int find_port(const struct delay_switch *s, const unsigned char *address)
{
    for (int i = 0; i < s->known_count; i++)
        if (memcmp(s->known[i].address, address, ETH_ALEN) == 0)
            return s->known[i].port;
    return -1;
}

static void learn(struct delay_switch *s, const unsigned char *address, int port)
{
    int i = 0;
    while (i < s->known_count && memcmp(s->known[i].address, address, ETH_ALEN) != 0)
        i++;
    if (i == MAX_KNOWN)
        return;
    memcpy(s->known[i].address, address, ETH_ALEN);
    s->known[i].port = port; /* perhaps another one than before */
    s->known_count += i == s->known_count;
}

static void send_due(struct delay_switch *s)
{
    for (int64_t time = now(); s->sent != s->received && s->held[s->sent % MAX_HELD].due <= time; s->sent++) {
        struct frame *frame = &s->held[s->sent % MAX_HELD];
        const unsigned char *to = frame->data + HEADER;
        int only = to[0] & 1 ? -1 : find_port(s, to); /* odd: to a group */
        for (int port = 0; port < s->ports; port++)
            if (port != frame->from && (only < 0 || only == port))
                (void)!write(s->sockets[port].fd, frame->data, frame->bytes); /* a full queue drops, as switches do */
        free(frame->data);
    }
}

static void receive(struct delay_switch *s, int port)
{
    static unsigned char buffer[MAX_FRAME];
    while (s->received - s->sent < MAX_HELD) {
        ssize_t bytes = read(s->sockets[port].fd, buffer, sizeof buffer);
        if (bytes < HEADER + ETH_HLEN)
            return;
        learn(s, buffer + HEADER + ETH_ALEN, port);
        struct frame *frame = &s->held[s->received++ % MAX_HELD];
        *frame = (struct frame){now() + s->delay, port, (size_t)bytes, malloc((size_t)bytes)};
        memcpy(frame->data, buffer, (size_t)bytes);
    }
}

static void wait_for_work(struct delay_switch *s)
{
    struct timespec rest, *limit = NULL;
    if (s->sent != s->received) {
        int64_t left = s->held[s->sent % MAX_HELD].due - now();
        left = left > 0 ? left : 0;
        rest = (struct timespec){left / 1000000000, left % 1000000000};
        limit = &rest;
    }
    ppoll(s->sockets, (nfds_t)s->ports, limit, NULL);
}

int main(int argc, char **argv)
{
    static struct delay_switch s;
    if (argc < 4 || argc - 2 > MAX_PORTS) {
        fprintf(stderr, "usage: netdelay MICROSECONDS INTERFACE INTERFACE...\n");
        return 2;
    }
    s.delay = atoll(argv[1]) * 1000;
    for (s.ports = 0; s.ports < argc - 2; s.ports++)
        s.sockets[s.ports] = (struct pollfd){open_port(argv[2 + s.ports]), POLLIN, 0};
    for (;;) {
        send_due(&s);
        wait_for_work(&s);
        for (int port = 0; port < s.ports; port++)
            receive(&s, port);
    }
}
