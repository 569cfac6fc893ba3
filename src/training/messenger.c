#include "messenger.h"

#include "signals.h"

_Static_assert(sizeof(struct event) <= COMM_MESSAGE_BYTES, "an event is one message");
static const struct event stop = {.kind = EVENT_STOP};

static void announce_stop(struct messenger *messenger)
{
    if (messenger->stop_announced || !*signals_stop_flag())
        return;
    messenger->stop_announced = true;
    for (int i = 0; i < messenger->count; i++)
        if (messenger->leaders[i] != 0)
            comm_send(messenger->world, messenger->leaders[i], &stop, sizeof stop);
}

/* World rank 0, while it trains or waits. */
static void serve(void *context)
{
    struct messenger *messenger = context;
    struct event event;
    while (comm_receive(messenger->world, &event, sizeof event)) {
        if (event.kind == EVENT_STOP)
            signals_request_stop();
        else
            display_event(messenger->display, &event);
    }
    announce_stop(messenger);
}

void messenger_report(void *context, const struct event *event)
{
    struct messenger *messenger = context;
    if (comm_rank(messenger->world) == 0) {
        display_event(messenger->display, event);
        serve(messenger);
        return;
    }
    struct event order;
    if (event->kind == EVENT_STEP) /* progress only: dropped while the last message is on its way */
        comm_try_send(messenger->world, 0, event, sizeof *event);
    else
        comm_send(messenger->world, 0, event, sizeof *event);
    while (comm_receive(messenger->world, &order, sizeof order)) /* only stops come this way */
        signals_request_stop();
}

void messenger_stop(struct messenger *messenger, bool leader)
{
    signals_request_stop();
    if (leader && comm_rank(messenger->world) != 0)
        comm_send(messenger->world, 0, &stop, sizeof stop);
}

void messenger_wait(struct messenger *messenger)
{
    bool first = comm_rank(messenger->world) == 0;
    comm_barrier_serving(messenger->world, first ? serve : NULL, messenger);
    if (first)
        serve(messenger);
}
